"""The checks of ``peerseal doctor``. Each is a function that takes the `Host` and yields what it found."""
