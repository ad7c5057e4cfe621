"""The commands that look after a relay: keys, balances, the audit log. What they do is `relay.administration`'s."""
