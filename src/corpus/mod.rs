//! Text to token shards, counting, tagging.
