"""A strategy and a base model as a user writes them, outside of the package."""
