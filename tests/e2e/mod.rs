//! The program end to end: as a process in a namespace, judged from outside.
//!
//! | module | what |
//! |---|---|
//! | [`hosts`] | clients and servers of every day over passthrough |
//! | [`accounting`] | where every packet went, to the last one |
//! | [`admission`] | who may send, which endpoints may come |
//! | [`bytes`] | every packet back byte for byte, in order, none lost |
//! | [`fault_links`] | links deleted, renamed, moved, down under the program |
//! | [`fault_uplink`] | the way to the load balancer lost and restored |
//! | [`faults`] | descriptors, locked memory, cores, clocks, standing still |
//! | [`cases`] | datagrams that a person wrote down, in `tests/cases/` |
//! | [`flows`] | whose flows stay in a full table, who may teach one, other clouds, no way back |
//! | [`headers`] | which GENEVE header a packet returns in |
//! | [`hooks`] | what a hook gets, and what one that misbehaves cannot do |
//! | [`inspection`] | the example hooks with Suricata and HAProxy, and what passes |
//! | [`lifecycle`] | teardown, re-creation, signals, nothing left |
//! | [`http`] | the health port's HTTP |
//! | [`crowds`] | the health port among clients that mean no good |
//! | [`health`] | the health port and the drop counters on it |
//! | [`soak`] | all of it for half an hour: nothing grows, nothing is lost unseen |
//! | [`start`] | exit status when it cannot start |
//! | [`cli`] | the command line as the reference takes it |
//! | [`logs`] | what the log says, word for word, and how much |
//! | [`many_endpoints`] | a thousand endpoints, and a flood of made-up ones |
//! | [`metrics`] | what /metrics, /livez and /readyz say, and what the alert rules make of it |
//! | [`names`] | links, ids, threads |
//! | [`scripts`] | the example hooks with real clients |
//! | [`scripts_faults`] | the example hooks by hand: what they undo, and what they refuse |
//! | [`senders`] | answers where the load balancer's source port cannot be had |
//! | [`permissions`] | service managers, capabilities, limits |
//! | [`reasons`] | drop reasons that ordinary traffic does not give |
//! | [`reference_bugs`] | what the reference does wrong, by number |
//! | [`service`] | what a service manager is told |
//! | [`doctor`] | `gwlbtun doctor`: what it finds, and whether its fixes help |
//! | [`status`] | `gwlbtun status` and `show`, and the socket behind them |
//! | [`steering`] | which worker gets a packet |
//! | [`super_packets`] | packets merged where they should be, and invisible outside |
//! | [`target_group`] | health checks by the load balancer, and a second arm |
//! | [`tools`] | tools of every day behind super-packets, and who dislikes them |
//! | [`transparency`] | random traffic back unchanged, and counters that add up |
//! | [`truth`] | 200 and 503 as they are |
//! | [`ui`] | the live page, and what a phone's browser makes of it |

mod accounting;
mod admission;
mod bytes;
mod cases;
mod cli;
mod crowds;
mod doctor;
mod edges;
mod fault_links;
mod fault_uplink;
mod faults;
mod flows;
mod headers;
mod health;
mod hooks;
mod hosts;
mod http;
mod inspection;
mod lifecycle;
mod logs;
mod many_endpoints;
mod metrics;
mod names;
mod permissions;
mod reasons;
mod reference_bugs;
mod scripts;
mod scripts_faults;
mod senders;
mod service;
mod soak;
mod start;
mod status;
mod steering;
mod super_packets;
mod target_group;
mod tools;
mod transparency;
mod truth;
mod ui;
