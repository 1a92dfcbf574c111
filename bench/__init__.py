"""The bench: gatewise beside torch.nn and others, on this machine. ``make bench`` runs it."""
