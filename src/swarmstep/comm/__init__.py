"""How workers communicate: the verbs (`base`), a group's life (`group`), in one or many processes."""
