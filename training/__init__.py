"""How the models that ship with the project were made; nothing here is needed to run it."""
