"""Text of several slices, to audit the routing of a model with: recipes, and the folder that they make."""
