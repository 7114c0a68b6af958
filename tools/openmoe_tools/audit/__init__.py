"""Routing audits: one pass over text, tables of integers, and what follows from them."""
