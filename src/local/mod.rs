pub mod e2b; pub mod postgres;
