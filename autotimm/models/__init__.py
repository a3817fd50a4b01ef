"""The network and its losses, in plain torch: backbone, FPN, FCOS head, mask head."""
