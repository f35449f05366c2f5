"""Study files: validated once, frozen, expanded into cells that are hashed over everything that affects the result."""
