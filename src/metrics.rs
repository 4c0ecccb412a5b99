//! Every metric: name, unit and help.
