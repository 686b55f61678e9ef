"""One file a published format; each yields lazy frames of interactions and of items."""
