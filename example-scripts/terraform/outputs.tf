output "clients" {
  description = "Clients by zone: aws ssm start-session --target"
  value       = { for zone, client in aws_instance.client : zone => client.id }
}

output "targets" {
  description = "Targets by zone, without an Auto Scaling group"
  value       = { for zone, target in aws_instance.target : zone => target.id }
}

output "target_group" {
  description = "Who is healthy: aws elbv2 describe-target-health --target-group-arn"
  value       = aws_lb_target_group.targets.arn
}

output "service" {
  description = "Name to make endpoints of other VPCs with"
  value       = aws_vpc_endpoint_service.gwlb.service_name
}
