"""What the tests stand on: a scripted origin (`origin`, `faults`)."""
