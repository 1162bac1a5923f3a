"""The connection manager (librdmacm): addresses, identifiers, their events and states.

`steertag.verbs` exports what applications use of it.
"""
