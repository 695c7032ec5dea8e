"""gunicorn's configuration for gevent's workers with ``--preload``: what is loaded before the fork must find everything
patched already. gevent says so itself, in a warning; gunicorn patches only after the fork."""

from gevent import monkey

monkey.patch_all()
