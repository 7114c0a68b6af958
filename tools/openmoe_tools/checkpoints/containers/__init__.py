"""Containers of tensors: what each file or folder holds, read by regions; and those that are written."""
