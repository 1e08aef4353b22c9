//! The conformance table: op × format × shape, generators and error metrics.
