//! Delta ADS client: subscriptions, ACK and NACK, reconnect.
