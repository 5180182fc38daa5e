%% The facts that a nats-server tells every client about itself, in INFO and on `$SYS.REQ'.
-module(nats_gateway_system).

-export([version/0]).
-export([info/3]).
-export([address/1]).
-export([peername/1]).
-export([user_info/2]).
-export([server_info/2]).

-export_type([user/0]).

%% `expires' is in milliseconds from now. Without rules the gateway itself restricts nothing.
-type user() :: #{
    %% the address where the server listens, as in INFO
    host := binary(),
    user := binary(),
    account := binary(),
    rules := undefined | nats_gateway_permissions:rules(),
    expires := infinity | non_neg_integer()
}.

-define(NS_PER_MS, 1_000_000).

%% The version of nats-server whose behaviour clients may count on. It has three numbers because
%% nats.js needs three.
-spec version() -> binary().
version() -> <<"2.10.27">>.

%% The INFO line (docs/protocol.md, section 3). No value in it is null, and clients can parse the
%% version. `go' is there for nats-core.
-spec info(Extra :: map(), MaxPayload :: non_neg_integer(), nats_gateway_host:client()) -> iodata().
info(Extra, MaxPayload, Client = #{config := Config}) ->
    #{client_id := ClientId, peername := {PeerHost, _}, sockname := {Host, Port}} = Client,
    #{server_id := ServerId, server_name := ServerName, auth_required := AuthRequired} = Config,
    Required = maps:from_list([{auth_required, true} || AuthRequired]),
    nats_gateway_nif:info(
        maps:merge(maps:merge(Required, maps:get(server_info, Client, #{})), Extra#{
            server_id => ServerId,
            server_name => ServerName,
            version => version(),
            proto => 1,
            go => list_to_binary("erlang" ++ erlang:system_info(otp_release)),
            host => address(Host),
            port => Port,
            headers => true,
            max_payload => MaxPayload,
            client_id => ClientId,
            client_ip => address(PeerHost)
        })
    ).

-spec address(inet:ip_address()) -> binary().
address(Address) -> list_to_binary(inet:ntoa(Address)).

%% The peer in the form that the log shows.
-spec peername({inet:ip_address(), inet:port_number()}) -> binary().
peername({Address, Port}) -> <<(address(Address))/binary, $:, (integer_to_binary(Port))/binary>>.

%% The answer to `$SYS.REQ.USER.INFO', with the fields of nats-server's `UserInfo'. `nats account
%% info' and `context()' of nats.js read it. The server's part has the fields of its `ServerInfo'.
-spec user_info(user(), nats_gateway_config:config()) -> binary().
user_info(User = #{host := Host}, Config) ->
    nats_gateway_nif:json(#{server => server_info(Host, Config), data => data(User)}).

%% Who answers: the fields of nats-server's `ServerInfo'.
-spec server_info(Host :: binary(), nats_gateway_config:config()) -> map().
server_info(Host, #{server_id := ServerId, server_name := ServerName}) ->
    #{
        name => ServerName,
        host => Host,
        id => ServerId,
        ver => version(),
        jetstream => false,
        flags => 0,
        seq => erlang:unique_integer([positive, monotonic]),
        time => now_rfc3339()
    }.

now_rfc3339() ->
    Now = erlang:system_time(microsecond),
    list_to_binary(calendar:system_time_to_rfc3339(Now, [{unit, microsecond}, {offset, "Z"}])).

data(#{user := User, account := Account, rules := Rules, expires := Expires}) ->
    maps:merge(
        maps:merge(#{user => User, account => Account}, permissions(Rules)),
        case Expires of
            infinity -> #{};
            Ms -> #{expires => Ms * ?NS_PER_MS}
        end
    ).

permissions(undefined) ->
    #{};
%% The answer has room for one list of allowed subjects, but a subject may have to be in two. In
%% that case the answer has the inner list.
permissions(Rules = #{publish := Publish, subscribe := Subscribe, outer := Outer}) ->
    #{publish := OuterPublish, subscribe := OuterSubscribe} = Outer,
    permissions((maps:remove(outer, Rules))#{
        publish := narrowed(Publish, OuterPublish),
        subscribe := narrowed(Subscribe, OuterSubscribe)
    });
permissions(#{publish := Publish, subscribe := Subscribe, allow_responses := Responses}) ->
    Given = maps:filter(
        fun(_, Value) -> Value =/= #{} end,
        #{
            publish => subjects(Publish),
            subscribe => subjects(Subscribe),
            responses => responses(Responses)
        }
    ),
    case map_size(Given) of
        0 -> #{};
        _ -> #{permissions => Given}
    end.

narrowed(#{allow := all, deny := Deny}, Outer = #{deny := OuterDeny}) ->
    Outer#{deny := OuterDeny ++ Deny};
narrowed(Subjects = #{deny := Deny}, #{deny := OuterDeny}) ->
    Subjects#{deny := OuterDeny ++ Deny}.

subjects(#{allow := Allow, deny := Deny}) ->
    maps:from_list(
        [{allow, Allow} || Allow =/= all, Allow =/= []] ++ [{deny, Deny} || Deny =/= []]
    ).

%% nats-server uses negative numbers for "no limit".
responses(undefined) ->
    #{};
responses(#{max := Max, expires := Expires}) ->
    #{
        max => limit(Max, 1),
        ttl => limit(Expires, ?NS_PER_MS)
    }.

limit(infinity, _) -> -1;
limit(Number, Unit) -> Number * Unit.
