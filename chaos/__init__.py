"""Floor 3: faults as small composable objects, and the proof of what holds."""
