//! One binary for everything that needs more than one module: the simulated load balancer
//! against its golden bytes, and the program end to end in namespaces.

#[cfg(test)]
mod cases;
#[cfg(test)]
mod container_tests;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod docs_tests;
#[cfg(test)]
mod e2e;
#[cfg(test)]
mod exhaustive;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod returns;
mod sim;
#[cfg(test)]
mod sim_tests;
mod support;
#[cfg(test)]
mod templates;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod tuning;
