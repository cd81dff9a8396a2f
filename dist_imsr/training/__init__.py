"""The span loop and what it stands on."""
