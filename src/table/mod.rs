//! The file of rows: format, index, row codecs, writer, readers.
