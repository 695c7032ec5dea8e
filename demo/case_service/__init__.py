"""The third service of the demo: it stores one case for each transaction of a user, and answers resource-service only.

It represents a service that another company runs. It has its own identity, process, database and list of callers. It
learns the user from the transaction token alone, which resource-service passes on unchanged.
"""
