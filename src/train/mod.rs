//! Joint training of the main model and the f-gram model.
