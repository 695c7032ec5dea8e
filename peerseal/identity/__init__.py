"""Who this service is: its keys, how they are enrolled and replaced, and what they sign.

The classes of keys:

=============== ========================================================================================
`KeyPair`       a private key with its public half, the `PublicKey` (`peerseal.protocol.keys`)
`StoredKey`     a key pair of this service, with its kid and times
`StoredKeys`    all of them, as the `KeyFolder` holds them for the processes of the host
`SigningKeys`   the same in the memory of one process, which asks them for the key to sign with
`TrustedKey`    the public key of another service, from a signed document (`peerseal.trust.beliefs`)
=============== ========================================================================================
"""
