//! A query → an answer from the name table, or the decision to ask a resolver. Pure but for the order of addresses, which
//! the caller's number turns.

use super::table::NameTable;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::IpAddr;

/// How long an answer may be kept, in seconds: addresses of headless services change.
const TTL: u32 = 30;
/// Answer size without EDNS (RFC 1035, section 4.2.1).
const PLAIN_SIZE: u16 = 512;
/// Largest answer over UDP whatever the client says: fits an Ethernet frame (RFC 9715, section 3).
const MAX_UDP_SIZE: u16 = 1400;

/// What to do with a query.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Send this.
    Answer(Box<Message>),
    /// Ask a resolver.
    Forward,
}

/// Decides on a query. `turn` rotates the addresses, so that clients that take the first share the load.
pub fn decide(table: &NameTable, query: &Message, turn: usize) -> Decision {
    let metadata = query.metadata;
    if metadata.op_code != OpCode::Query {
        return answer(query, ResponseCode::NotImp, Vec::new());
    }
    let [question] = query.queries.as_slice() else {
        return answer(query, ResponseCode::FormErr, Vec::new());
    };
    let wanted = question.query_type();
    if question.query_class() != DNSClass::IN || !matches!(wanted, RecordType::A | RecordType::AAAA) {
        return Decision::Forward;
    }
    let Some(found) = table.find(&question.name().to_ascii()) else { return Decision::Forward };
    let mut owner = question.name().clone();
    let mut records = Vec::new();
    if let Some(mut full) = found.canonical.and_then(|name| Name::from_ascii(name).ok()) {
        full.set_fqdn(true);
        records.push(Record::from_rdata(owner, TTL, RData::CNAME(CNAME(full.clone()))));
        owner = full;
    }
    let mut addresses: Vec<RData> = found.ips.iter().filter_map(|ip| address(*ip, wanted)).collect();
    if !addresses.is_empty() {
        let by = turn % addresses.len();
        addresses.rotate_left(by);
    }
    // A name of the mesh without an address of this family exists all the same: no error, no records.
    records.extend(addresses.into_iter().map(|data| Record::from_rdata(owner.clone(), TTL, data)));
    answer(query, ResponseCode::NoError, records)
}

fn address(ip: IpAddr, wanted: RecordType) -> Option<RData> {
    match (ip, wanted) {
        (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(ip))),
        (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(ip))),
        _ => None,
    }
}

fn answer(query: &Message, code: ResponseCode, records: Vec<Record>) -> Decision {
    Decision::Answer(Box::new(response(query, code, records)))
}

/// An answer to `query`.
pub fn response(query: &Message, code: ResponseCode, records: Vec<Record>) -> Message {
    let mut message = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    message.metadata = Metadata::response_from_request(&query.metadata);
    message.metadata.response_code = code;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = code == ResponseCode::NoError && !records.is_empty();
    message.add_queries(query.queries.iter().cloned());
    message.add_answers(records);
    if query.edns.is_some() {
        // Who asks with EDNS is answered with EDNS (RFC 6891, section 6.1.1).
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_UDP_SIZE);
        message.set_edns(edns);
    }
    message
}

/// The bytes of an answer over UDP: cut, with the truncation bit, when they exceed what the client takes.
pub fn udp_bytes(query: &Message, message: &Message) -> Option<Vec<u8>> {
    let limit = query.edns.as_ref().map_or(PLAIN_SIZE, |edns| edns.max_payload().clamp(PLAIN_SIZE, MAX_UDP_SIZE));
    let bytes = message.to_vec().ok()?;
    match bytes.len() <= usize::from(limit) {
        true => Some(bytes),
        false => message.truncate().to_vec().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use weft_proto::istio::networking::nds::v1 as nds;

    fn table(count: u8) -> NameTable {
        let mut ips: Vec<String> = (1..=count).map(|i| format!("10.0.0.{i}")).collect();
        ips.push("2001:2::1".into());
        let info = nds::name_table::NameInfo {
            ips,
            registry: "Kubernetes".into(),
            shortname: "a".into(),
            namespace: "ns".into(),
            ..Default::default()
        };
        let table = [("a.ns.svc.cluster.local".to_owned(), info)].into();
        NameTable::new(&nds::NameTable { table }, "ns", &["ns.svc.cluster.local".to_owned()])
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn answered(decision: Decision) -> Message {
        match decision {
            Decision::Answer(message) => *message,
            Decision::Forward => panic!("forwarded"),
        }
    }

    #[test]
    fn addresses_by_family_and_turn() {
        let table = table(2);
        for (kind, turn, expected) in [
            (RecordType::A, 0, vec!["10.0.0.1", "10.0.0.2"]),
            (RecordType::A, 3, vec!["10.0.0.2", "10.0.0.1"]),
            (RecordType::AAAA, 5, vec!["2001:2::1"]),
        ] {
            let message = answered(decide(&table, &query("A.ns.svc.cluster.local.", kind), turn));
            let ips: Vec<String> =
                message.answers.iter().filter_map(|r| r.data.ip_addr()).map(|ip| ip.to_string()).collect();
            assert_eq!(ips, expected);
            assert_eq!(message.metadata.id, 7);
            assert!(message.metadata.recursion_desired && message.metadata.recursion_available);
        }
    }

    #[test]
    fn a_search_domain_is_answered_by_cname() {
        let message = answered(decide(&table(1), &query("a.ns.ns.svc.cluster.local.", RecordType::A), 0));
        assert_eq!(message.answers.len(), 2);
        assert_eq!(message.answers[0].record_type(), RecordType::CNAME);
        assert_eq!(message.answers[1].name.to_ascii(), "a.ns.svc.cluster.local.");
    }

    #[test]
    fn others_are_forwarded_or_refused() {
        let table = table(1);
        assert_eq!(decide(&table, &query("example.com.", RecordType::A), 0), Decision::Forward);
        assert_eq!(decide(&table, &query("a.ns.svc.cluster.local.", RecordType::TXT), 0), Decision::Forward);
        let mut two = query("a.ns.", RecordType::A);
        two.add_query(Query::query(Name::from_ascii("b.").unwrap(), RecordType::A));
        assert_eq!(answered(decide(&table, &two, 0)).metadata.response_code, ResponseCode::FormErr);
        let mut update = query("a.ns.", RecordType::A);
        update.metadata.op_code = OpCode::Update;
        assert_eq!(answered(decide(&table, &update, 0)).metadata.response_code, ResponseCode::NotImp);
    }

    #[test]
    fn large_answers_are_cut_over_udp() {
        let table = table(200);
        let mut asked = query("a.ns.", RecordType::A);
        let full = answered(decide(&table, &asked, 0));
        let cut = Message::from_vec(&udp_bytes(&asked, &full).unwrap()).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        assert!(full.to_vec().unwrap().len() > 2000);
        let mut edns = Edns::new();
        edns.set_max_payload(65_000);
        asked.set_edns(edns);
        let small = answered(decide(&self::table(60), &asked, 0));
        assert!(!Message::from_vec(&udp_bytes(&asked, &small).unwrap()).unwrap().metadata.truncation);
        let large = answered(decide(&table, &asked, 0));
        assert!(udp_bytes(&asked, &large).unwrap().len() <= 1400);
    }
}
