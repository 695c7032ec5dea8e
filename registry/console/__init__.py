"""The registry in a browser, for operators: pages at ``/console``, made on the server, which need no scripts.

A page reads through the use cases that the HTTP interface calls, and an act goes through them as well, with the role of
the operator who is signed in. `registry.console.install` adds it to the application::

    install ─── pages ─── rendering ─── request
"""
