"""The `openmoe` command line and what its commands use."""
