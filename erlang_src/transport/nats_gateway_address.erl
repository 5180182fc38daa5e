%% Addresses as text.
-module(nats_gateway_address).

-export([format/1]).

%% A port alone means all addresses. An IPv6 address is in brackets, which separate it from the
%% port.
-spec format({inet:ip_address() | string(), inet:port_number()} | inet:port_number()) -> string().
format(Port) when is_integer(Port) -> integer_to_list(Port);
format({Address, Port}) when is_tuple(Address) -> format({inet:ntoa(Address), Port});
format({Host, Port}) ->
    case lists:member($:, Host) of
        true -> lists:append(["[", Host, "]:", integer_to_list(Port)]);
        false -> lists:append([Host, ":", integer_to_list(Port)])
    end.
