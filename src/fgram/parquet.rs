//! F-gram sets as Parquet files.
