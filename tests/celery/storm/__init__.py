"""A storm: calls of all kinds on few keys, while children and whole workers are killed.

`tasks` are what is called, `calls` how, `storm` calls and kills, `broker` follows the messages, and `account` judges
what stands in the `log`.
"""
