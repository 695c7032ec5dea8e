"""The commands of ``peerseal`` (`peerseal.__main__`)."""
