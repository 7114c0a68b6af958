"""The routing of every counted token in Parquet files, and SQL over them: new questions need no new run."""
