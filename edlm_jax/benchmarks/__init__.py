"""How fast: decoding, training and attention, torch beside them; compiling for devices that are not here."""
