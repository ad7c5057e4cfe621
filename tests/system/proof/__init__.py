"""What tests/system/test_prometheus runs on: relays that are hurt one way after the other while a real Prometheus looks on."""
