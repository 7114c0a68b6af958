"""Text and tokenisers."""
