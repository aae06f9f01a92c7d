"""The rules of the lexical guard: what each reads out of a prompt, one a file."""
