# ------------------------------------------------------------------ where the clients are

resource "aws_vpc" "clients" {
  cidr_block                       = "10.20.0.0/16"
  assign_generated_ipv6_cidr_block = true
  enable_dns_support               = true
  enable_dns_hostnames             = true
  tags                             = { Name = "${var.name} clients" }
}

resource "aws_subnet" "clients" {
  for_each                        = local.zones
  vpc_id                          = aws_vpc.clients.id
  availability_zone               = data.aws_availability_zones.here.names[each.value]
  cidr_block                      = cidrsubnet(aws_vpc.clients.cidr_block, 8, each.value)
  ipv6_cidr_block                 = cidrsubnet(aws_vpc.clients.ipv6_cidr_block, 8, each.value)
  assign_ipv6_address_on_creation = true
  tags                            = { Name = "${var.name} clients ${each.key}" }
}

resource "aws_subnet" "endpoints" {
  for_each          = local.zones
  vpc_id            = aws_vpc.clients.id
  availability_zone = data.aws_availability_zones.here.names[each.value]
  cidr_block        = cidrsubnet(aws_vpc.clients.cidr_block, 8, 2 + each.value)
  ipv6_cidr_block   = cidrsubnet(aws_vpc.clients.ipv6_cidr_block, 8, 2 + each.value)
  tags              = { Name = "${var.name} endpoint ${each.key}" }
}

resource "aws_vpc_endpoint" "gwlb" {
  for_each          = local.zones
  vpc_id            = aws_vpc.clients.id
  subnet_ids        = [aws_subnet.endpoints[each.key].id]
  vpc_endpoint_type = "GatewayLoadBalancer"
  ip_address_type   = "dualstack"
  service_name      = aws_vpc_endpoint_service.gwlb.service_name
}

# All that a client sends goes to the endpoint of its zone.
resource "aws_route_table" "clients" {
  for_each = local.zones
  vpc_id   = aws_vpc.clients.id
  tags     = { Name = "${var.name} clients ${each.key}" }
}

resource "aws_route_table_association" "clients" {
  for_each       = local.zones
  subnet_id      = aws_subnet.clients[each.key].id
  route_table_id = aws_route_table.clients[each.key].id
}

resource "aws_route" "clients_default" {
  for_each               = local.zones
  route_table_id         = aws_route_table.clients[each.key].id
  destination_cidr_block = "0.0.0.0/0"
  vpc_endpoint_id        = aws_vpc_endpoint.gwlb[each.key].id
}

resource "aws_route" "clients_default6" {
  for_each                    = local.zones
  route_table_id              = aws_route_table.clients[each.key].id
  destination_ipv6_cidr_block = "::/0"
  vpc_endpoint_id             = aws_vpc_endpoint.gwlb[each.key].id
}

resource "aws_route_table" "endpoints" {
  vpc_id = aws_vpc.clients.id
  tags   = { Name = "${var.name} endpoints" }
}

resource "aws_route_table_association" "endpoints" {
  for_each       = local.zones
  subnet_id      = aws_subnet.endpoints[each.key].id
  route_table_id = aws_route_table.endpoints.id
}

# ------------------------------------------------------------------ one arm: the way to the internet

# What comes back from an endpoint goes to the internet: IPv4 by the NAT gateway, IPv6 directly.
resource "aws_internet_gateway" "clients" {
  count  = local.two_arm ? 0 : 1
  vpc_id = aws_vpc.clients.id
  tags   = { Name = "${var.name} clients" }
}

resource "aws_route" "endpoints_default" {
  count                  = local.two_arm ? 0 : 1
  route_table_id         = aws_route_table.endpoints.id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.clients[0].id
}

resource "aws_route" "endpoints_default6" {
  count                       = local.two_arm ? 0 : 1
  route_table_id              = aws_route_table.endpoints.id
  destination_ipv6_cidr_block = "::/0"
  gateway_id                  = aws_internet_gateway.clients[0].id
}

# Answers for IPv4 leave the NAT gateway's subnet by the endpoint of the client's zone.
resource "aws_subnet" "clients_public" {
  count             = local.two_arm ? 0 : 1
  vpc_id            = aws_vpc.clients.id
  availability_zone = data.aws_availability_zones.here.names[0]
  cidr_block        = "10.20.4.0/24"
  tags              = { Name = "${var.name} clients public" }
}

resource "aws_route_table" "clients_public" {
  count  = local.two_arm ? 0 : 1
  vpc_id = aws_vpc.clients.id
  tags   = { Name = "${var.name} clients public" }
}

resource "aws_route_table_association" "clients_public" {
  count          = local.two_arm ? 0 : 1
  subnet_id      = aws_subnet.clients_public[0].id
  route_table_id = aws_route_table.clients_public[0].id
}

resource "aws_route" "clients_public_default" {
  count                  = local.two_arm ? 0 : 1
  route_table_id         = aws_route_table.clients_public[0].id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.clients[0].id
}

resource "aws_eip" "clients" {
  count      = local.two_arm ? 0 : 1
  domain     = "vpc"
  tags       = { Name = "${var.name} clients" }
  depends_on = [aws_internet_gateway.clients]
}

resource "aws_nat_gateway" "clients" {
  count         = local.two_arm ? 0 : 1
  allocation_id = aws_eip.clients[0].id
  subnet_id     = aws_subnet.clients_public[0].id
  tags          = { Name = "${var.name} clients" }
  depends_on    = [aws_route.clients_public_default, aws_route_table_association.clients_public]
}

resource "aws_route" "clients_return" {
  for_each               = local.two_arm ? {} : local.zones
  route_table_id         = aws_route_table.clients_public[0].id
  destination_cidr_block = aws_subnet.clients[each.key].cidr_block
  vpc_endpoint_id        = aws_vpc_endpoint.gwlb[each.key].id
}

# Those for IPv6 come in by the internet gateway, whose own table sends them there.
resource "aws_route_table" "edge" {
  count  = local.two_arm ? 0 : 1
  vpc_id = aws_vpc.clients.id
  tags   = { Name = "${var.name} edge" }
}

resource "aws_route_table_association" "edge" {
  count          = local.two_arm ? 0 : 1
  gateway_id     = aws_internet_gateway.clients[0].id
  route_table_id = aws_route_table.edge[0].id
}

resource "aws_route" "clients_return6" {
  for_each                    = local.two_arm ? {} : local.zones
  route_table_id              = aws_route_table.edge[0].id
  destination_ipv6_cidr_block = aws_subnet.clients[each.key].ipv6_cidr_block
  vpc_endpoint_id             = aws_vpc_endpoint.gwlb[each.key].id
  depends_on                  = [aws_route_table_association.edge]
}

# ------------------------------------------------------------------ two arms: another way back

# Free, and unused by create-nat.sh, which sends answers back through the load balancer. Hooks that send
# them straight to the client, as AWS's create-nat.sh does, need this way.
resource "aws_vpc_peering_connection" "answers" {
  count       = local.two_arm ? 1 : 0
  vpc_id      = aws_vpc.appliances.id
  peer_vpc_id = aws_vpc.clients.id
  auto_accept = true
  tags        = { Name = "${var.name} answers" }
}

resource "aws_route" "answers" {
  count                     = local.two_arm ? 1 : 0
  route_table_id            = aws_route_table.appliances.id
  destination_cidr_block    = aws_vpc.clients.cidr_block
  vpc_peering_connection_id = aws_vpc_peering_connection.answers[0].id
}

resource "aws_route" "answers6" {
  count                       = local.two_arm ? 1 : 0
  route_table_id              = aws_route_table.appliances.id
  destination_ipv6_cidr_block = aws_vpc.clients.ipv6_cidr_block
  vpc_peering_connection_id   = aws_vpc_peering_connection.answers[0].id
}

# ------------------------------------------------------------------ the clients

resource "aws_security_group" "clients" {
  name        = "${var.name}-clients"
  description = "Nothing comes in that was not asked for"
  vpc_id      = aws_vpc.clients.id

  egress {
    description      = "all"
    protocol         = "-1"
    from_port        = 0
    to_port          = 0
    cidr_blocks      = ["0.0.0.0/0"]
    ipv6_cidr_blocks = ["::/0"]
  }
}

# Session Manager, and nothing else of AWS.
resource "aws_iam_role" "clients" {
  name_prefix        = "${var.name}-client-"
  assume_role_policy = aws_iam_role.targets.assume_role_policy
}

resource "aws_iam_role_policy_attachment" "clients" {
  role       = aws_iam_role.clients.name
  policy_arn = aws_iam_role_policy_attachment.targets.policy_arn
}

resource "aws_iam_instance_profile" "clients" {
  name_prefix = "${var.name}-client-"
  role        = aws_iam_role.clients.name
}

# Its only way out, and Session Manager's way in, is through gwlbtun: so it starts last.
resource "aws_instance" "client" {
  for_each               = local.zones
  ami                    = data.aws_ssm_parameter.image.value
  instance_type          = local.arm64 ? "t4g.micro" : "t3.micro"
  subnet_id              = aws_subnet.clients[each.key].id
  vpc_security_group_ids = [aws_security_group.clients.id]
  iam_instance_profile   = aws_iam_instance_profile.clients.name
  tags                   = { Name = "${var.name} client ${each.key}" }
  depends_on = [
    aws_lb_target_group_attachment.targets,
    aws_autoscaling_group.targets,
    aws_lb_listener.all,
    aws_route_table_association.clients,
    aws_route.clients_default,
    aws_route.clients_default6,
    aws_route_table_association.endpoints,
    aws_route.endpoints_default,
    aws_route.endpoints_default6,
    aws_route.clients_return,
    aws_route.clients_return6,
    aws_route.answers,
    aws_route.answers6,
  ]

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    volume_size = 8
    volume_type = "gp3"
    encrypted   = true
  }

  lifecycle {
    ignore_changes = [ami]
  }
}
