"""The page's template, style sheet and script."""
