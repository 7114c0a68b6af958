"""Tables of whole numbers, and how routed tokens are counted into them."""
