"""Files and folders, here and on servers: whole writes, URLs, units, one way to ask again."""
