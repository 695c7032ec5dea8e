"""The third party of the demo: it keeps one case for each transaction of a user, and answers resource-service only.

It stands for a service that another company runs. It has an identity, a process, a database and a list of callers of
its own, and learns the user from the transaction token alone, which resource-service passes on as it came.
"""
