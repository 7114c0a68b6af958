"""The report of an audit as one page for any browser, and its figures as files for papers."""
