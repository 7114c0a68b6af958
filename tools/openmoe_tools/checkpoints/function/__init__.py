"""The functional tier of `openmoe verify`: both models run on probes."""
