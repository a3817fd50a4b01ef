"""Processes that train together: their launcher, rendezvous, agreement, lost ranks and signals."""
