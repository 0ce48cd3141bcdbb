"""Speed, measured side by side with the alternatives in one run; see ``make bench``."""
