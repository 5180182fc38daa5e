%% The header of the PROXY protocol, in which a proxy names its client.
%%
%% esockd and ranch have readers of their own. This one treats both versions alike on every
%% listener. It takes the header in any number of pieces, leaves the bytes behind it alone, and
%% crashes on no input.
-module(nats_gateway_proxy).

-export([parse/1]).

-export_type([client/0]).

-type address() :: {inet:ip_address(), inet:port_number()}.
-type client() :: #{
    peername := address(),
    sockname := address(),
    peercert := nossl | nats_gateway_certificate:peercert()
}.

-define(SIGNATURE, "\r\n\r\n\0\r\nQUIT\n").
-define(LONGEST_LINE, 107).

%% The commands, and the address families with their transports.
-define(LOCAL, 0).
-define(PROXY, 1).
-define(UNSPECIFIED, 16#00).
-define(TCP4, 16#11).
-define(TCP6, 16#21).
-define(UNIX, 16#31).

%% The types of additional fields: TLS, and inside it the common name of the client's certificate.
-define(TYPE_SSL, 16#20).
-define(TYPE_SSL_CN, 16#22).

%% The bits that say that the client has shown a certificate: one for this connection, one for the
%% TLS session.
-define(CLIENT_CERT, 16#06).

%% `nobody' means the proxy itself, which checks our health, or a client without an IP address.
-spec parse(binary()) ->
    more
    | {ok, client() | nobody, Rest :: binary()}
    | {error, no_proxy_header | bad_proxy_header}.
parse(<<?SIGNATURE, 2:4, Command:4, Family, Size:16, Body:Size/binary, Rest/binary>>) ->
    parsed(binary(Command, Family, Body), Rest);
parse(<<?SIGNATURE, Version:4, _:4, _/binary>>) when Version =/= 2 ->
    {error, bad_proxy_header};
parse(<<?SIGNATURE, _/binary>>) ->
    more;
parse(<<"PROXY ", _/binary>> = Bytes) ->
    case binary:match(binary:part(Bytes, 0, min(byte_size(Bytes), ?LONGEST_LINE)), <<"\r\n">>) of
        {At, 2} ->
            <<Line:At/binary, "\r\n", Rest/binary>> = Bytes,
            parsed(client_of_line(binary:split(Line, <<" ">>, [global])), Rest);
        nomatch when byte_size(Bytes) < ?LONGEST_LINE ->
            more;
        nomatch ->
            {error, bad_proxy_header}
    end;
parse(Bytes) ->
    Begins = fun(Header) ->
        binary:longest_common_prefix([Bytes, Header]) =:= byte_size(Bytes)
    end,
    case lists:any(Begins, [<<"PROXY ">>, <<?SIGNATURE>>]) of
        true -> more;
        false -> {error, no_proxy_header}
    end.

parsed(error, _) -> {error, bad_proxy_header};
parsed(Client, Rest) -> {ok, Client, Rest}.

client_of_line([_, <<"UNKNOWN">> | _]) ->
    nobody;
client_of_line([_, <<"TCP4">> | Ends]) ->
    client_of_addresses(Ends, fun inet:parse_ipv4strict_address/1);
client_of_line([_, <<"TCP6">> | Ends]) ->
    client_of_addresses(Ends, fun inet:parse_ipv6strict_address/1);
client_of_line(_) ->
    error.

client_of_addresses([Source, Destination, SourcePort, DestinationPort], Parse) ->
    Addresses = [Parse(binary_to_list(Address)) || Address <- [Source, Destination]],
    Ports = lists:map(fun port/1, [SourcePort, DestinationPort]),
    case {Addresses, Ports} of
        {[{ok, From}, {ok, To}], [FromPort, ToPort]} when
            is_integer(FromPort), is_integer(ToPort)
        ->
            client({From, FromPort}, {To, ToPort}, nossl);
        _ ->
            error
    end;
client_of_addresses(_, _) ->
    error.

port(Text) ->
    try binary_to_integer(Text) of
        Port when Port >= 0, Port =< 65535 -> Port;
        _ -> error
    catch
        error:badarg -> error
    end.

binary(?LOCAL, _, _) ->
    nobody;
binary(?PROXY, Family, _) when Family =:= ?UNSPECIFIED; Family =:= ?UNIX ->
    nobody;
binary(?PROXY, ?TCP4, <<From:4/binary, To:4/binary, FromPort:16, ToPort:16, Fields/binary>>) ->
    Address = fun(Bytes) -> list_to_tuple([N || <<N:8>> <= Bytes]) end,
    client({Address(From), FromPort}, {Address(To), ToPort}, certificate(Fields));
binary(?PROXY, ?TCP6, <<From:16/binary, To:16/binary, FromPort:16, ToPort:16, Fields/binary>>) ->
    Address = fun(Bytes) -> list_to_tuple([N || <<N:16>> <= Bytes]) end,
    client({Address(From), FromPort}, {Address(To), ToPort}, certificate(Fields));
binary(_, _, _) ->
    error.

client(_, _, error) ->
    error;
client(Source, Destination, Certificate) ->
    #{peername => Source, sockname => Destination, peercert => Certificate}.

%% The certificate in esockd's form. A name counts only if the proxy has verified its certificate:
%% some proxies also pass on clients whose certificate they have not verified.
certificate(Bytes) ->
    case field(?TYPE_SSL, Bytes) of
        {ok, <<Client, Verify:32, Fields/binary>>} ->
            IsVerified = Verify =:= 0 andalso Client band ?CLIENT_CERT =/= 0,
            case field(?TYPE_SSL_CN, Fields) of
                {ok, Name} when IsVerified -> [{pp2_ssl_cn, binary:copy(Name)}];
                {ok, _} -> nossl;
                none -> nossl;
                error -> error
            end;
        {ok, _} ->
            error;
        none ->
            nossl;
        error ->
            error
    end.

%% The first field of a type. The fields behind it are parsed, too, because the gateway trusts
%% either all of them or none.
field(Type, Bytes) ->
    case fields(Bytes, []) of
        error ->
            error;
        Fields ->
            case lists:keyfind(Type, 1, Fields) of
                {_, Value} -> {ok, Value};
                false -> none
            end
    end.

fields(<<Type, Size:16, Value:Size/binary, Rest/binary>>, Fields) ->
    fields(Rest, [{Type, Value} | Fields]);
fields(<<>>, Fields) ->
    lists:reverse(Fields);
fields(_, _) ->
    error.
