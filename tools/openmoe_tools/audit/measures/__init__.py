"""From the tables of an audit to its report: figures' data, tables, and a verdict by stated rules."""
