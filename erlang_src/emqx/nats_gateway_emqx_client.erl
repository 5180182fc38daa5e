%% Who a NATS client is for EMQX (clientinfo, conninfo), and whether EMQX lets it in.
-module(nats_gateway_emqx_client).

-export([generated/0]).
-export([clientinfo/2]).
-export([conninfo/2]).
-export([admit/4]).
-export([close_reason/1]).
-export([connack/1]).
-export([text/1]).
%% For tests
-export([render/2]).

-export_type([clientinfo/0, conninfo/0]).

%% The same as in EMQX's own channels.
-type clientinfo() :: map().
-type conninfo() :: map().

%% The module that EMQX's gateway manager calls.
-define(CONNECTION, nats_gateway_connection).

-define(PASSWORD_TEMPLATE, <<"${Packet.pass}">>).

%% -------------------------------------------------------------------------------------------
%% Who it is

-spec clientinfo(nats_gateway_host:client(), Generated :: binary()) -> clientinfo().
clientinfo(Client = #{connect := Fields, config := Config}, Generated) ->
    #{listener := Listener, peername := Peername = {PeerHost, _}, sockname := {_, Port}} = Client,
    #{mountpoint := Mountpoint, clientinfo_override := Override, host := Settings} = Config,
    #{enable_authn := EnableAuthn} = Settings,
    Named = certificate_names(maps:get(peercert, Client, nossl)),
    Known = Named#{
        zone => default,
        listener => Listener,
        protocol => nats,
        peerhost => PeerHost,
        peername => Peername,
        sockport => Port,
        clientid => Generated,
        is_bridge => false,
        is_superuser => false,
        enable_authn => EnableAuthn,
        mountpoint => Mountpoint
    },
    Names = #{
        <<"Packet">> => Fields,
        <<"ClientInfo">> => Known,
        <<"ConnInfo">> => maps:with([peername, sockname, transport], Client),
        <<"Login">> => maps:get(login, Client, #{}),
        <<"generated">> => Generated
    },
    Templates = maps:merge(
        #{username => <<"${Packet.user}">>, password => ?PASSWORD_TEMPLATE}, Override
    ),
    Rendered = maps:filtermap(
        fun(_, Template) ->
            case render(Template, Names) of
                <<>> -> false;
                Text -> {true, Text}
            end
        end,
        Templates
    ),
    identified(
        Client,
        maps:merge(Known#{username => undefined, password => token(Fields, Templates)}, Rendered)
    ).

%% The client gets the name that EMQX's built-in gateway would give it. Mountpoints and rules can
%% use the other names as `${client_attrs.nats_account}' and so on.
identified(#{login := Login = #{method := Method, username := Username}}, ClientInfo) ->
    Attributes = maps:fold(
        fun(Name, Value, Acc) -> Acc#{<<"nats_", (atom_to_binary(Name))/binary>> => Value} end,
        #{},
        maps:with([nkey, name, account, account_name], Login)
    ),
    maps:merge(ClientInfo, #{
        username => Username,
        password => undefined,
        auth_method => Method,
        auth_expire_at => expires_at(maps:get(expires, Login)),
        client_attrs => Attributes
    });
identified(_, ClientInfo) ->
    ClientInfo.

expires_at(infinity) -> undefined;
expires_at({Ms, _}) -> erlang:system_time(millisecond) + Ms.

%% For ${cert_subject} and ${cert_common_name} in EMQX's templates.
certificate_names(Peercert) when Peercert =:= nossl; Peercert =:= undefined -> #{};
certificate_names(Peercert) ->
    #{dn => esockd_peercert:subject(Peercert), cn => esockd_peercert:common_name(Peercert)}.

%% A token alone is passed on as the password, because EMQX looks for a JWT there.
token(#{auth_token := Token}, #{password := ?PASSWORD_TEMPLATE}) when Token =/= <<>> -> Token;
token(_, _) -> undefined.

%% Replaces the variables `${Name.Name}' of a template. Unknown variables become empty. A value is
%% not searched for variables.
-spec render(Template :: binary(), Names :: #{binary() => term()}) -> binary().
render(Template, Names) ->
    nats_gateway_template:render(Template, fun(Path) ->
        text(find(binary:split(Path, <<".">>, [global]), Names))
    end).

find([], Value) ->
    Value;
find([Name | Path], Values) when is_map(Values) ->
    case [Value || {Key, Value} <- maps:to_list(Values), text(Key) =:= Name] of
        [Value] -> find(Path, Value);
        _ -> undefined
    end;
find(_, _) ->
    undefined.

-spec text(term()) -> binary().
text(undefined) -> <<>>;
text(Text) when is_binary(Text) -> Text;
text(Atom) when is_atom(Atom) -> atom_to_binary(Atom);
text(Integer) when is_integer(Integer) -> integer_to_binary(Integer);
text({Address, Port}) when is_integer(Port) -> list_to_binary(nats_gateway_address:format({Address, Port}));
text(Address) when is_tuple(Address) ->
    case inet:ntoa(Address) of
        {error, _} -> <<>>;
        Text -> list_to_binary(Text)
    end;
text(_) ->
    <<>>.

%% A name that nobody else has.
-spec generated() -> binary().
generated() -> <<"nats-", (binary:encode_hex(crypto:strong_rand_bytes(9)))/binary>>.

%% The fields that EMQX's REST API, rule engine and license look for.
-spec conninfo(clientinfo(), nats_gateway_host:client()) -> conninfo().
conninfo(#{clientid := ClientId, username := Username}, Client) ->
    #{config := Config, transport := Transport, peername := Peername, sockname := Sockname} =
        Client,
    #{
        socktype => Transport,
        peername => Peername,
        sockname => Sockname,
        peercert => maps:get(peercert, Client, nossl),
        conn_mod => ?CONNECTION,
        proto_name => <<"NATS">>,
        proto_ver => <<"1">>,
        clean_start => true,
        clientid => ClientId,
        username => Username,
        keepalive => seconds(maps:get(default_heartbeat_interval, Config)),
        expiry_interval => 0,
        receive_maximum => 0,
        conn_props => #{},
        connected_at => erlang:system_time(millisecond)
    }.

seconds(infinity) -> 0;
seconds(Ms) -> Ms div 1000.

%% -------------------------------------------------------------------------------------------
%% Whether it is let in

%% Checks the client in the same order as EMQX's own channels. With what the session says of its user.
-spec admit(nats_gateway_host:client(), clientinfo(), conninfo(), Context) ->
    {ok, clientinfo(), #{proven_user => binary()}} | {error, Reason :: term()}
when
    Context :: nats_gateway_emqx_metrics:context().
admit(Client, ClientInfo, ConnInfo, Context) ->
    case nats_gateway_emqx_metrics:fold_hook(
            'client.connect', ConnInfo, [ConnInfo], #{}, Context
        ) of
        {error, Reason} ->
            {error, Reason};
        _ ->
            case emqx_banned:check(ClientInfo) of
                true -> {error, banned};
                false -> admitted(authenticate(Client, ClientInfo, Context))
            end
    end.

%% As in EMQX, a login of the gateway's own skips the authenticators and their hooks.
authenticate(#{login := _}, ClientInfo, _) ->
    #{mountpoint := Mountpoint} = ClientInfo,
    {ok, ClientInfo#{mountpoint := emqx_mountpoint:replvar(Mountpoint, ClientInfo)}, #{}};
authenticate(Client, ClientInfo, #{ctx := Ctx}) ->
    Before = proven_user(Client, ClientInfo),
    case asked(Ctx, ClientInfo, nats_gateway_emqx_built_in:is_bar_left(ClientInfo)) of
        {ok, Admitted} ->
            %% Authenticators may come and go meanwhile.
            case proven_user(Client, ClientInfo) of
                Before -> {ok, Admitted, Before};
                _ -> {ok, Admitted, #{}}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

asked(Ctx, ClientInfo, false) ->
    emqx_gateway_ctx:authenticate(Ctx, ClientInfo);
asked(Ctx, ClientInfo, true) ->
    case emqx_gateway_ctx:authenticate(Ctx, ClientInfo#{enable_authn := false}) of
        {ok, Admitted} -> {ok, Admitted#{enable_authn := maps:get(enable_authn, ClientInfo)}};
        {error, Reason} -> {error, Reason}
    end.

%% The name was proven if EMQX has checked just what the client has sent: `clientinfo_override' may have
%% put other names and passwords in its place. It matters only for few.
proven_user(
    #{connect := #{user := User, pass := Password}, config := #{system := #{users := Users}}},
    ClientInfo = #{username := User, password := Password}
) when
    User =/= <<>>, Password =/= <<>>
->
    case lists:member(User, Users) andalso nats_gateway_emqx_authn:is_asked_for_credentials(ClientInfo) of
        true -> #{proven_user => User};
        false -> #{}
    end;
proven_user(_, _) ->
    #{}.

admitted({ok, ClientInfo = #{mountpoint := Mountpoint}, Proven}) when is_binary(Mountpoint) ->
    %% A name that contains a wildcard must not open the mountpoints of others.
    case nats_gateway_filters:has_wildcard(Mountpoint) of
        false -> {ok, with_shared_keys(maps:remove(password, ClientInfo)), Proven};
        true -> {error, wildcard_in_mountpoint}
    end;
admitted({ok, ClientInfo, Proven}) ->
    {ok, with_shared_keys(maps:remove(password, ClientInfo)), Proven};
admitted({error, Reason}) ->
    {error, Reason}.

%% Maps that one expression made have their keys in common. Others have a copy each, a tenth of a
%% kilobyte for every client. Nearly all clients have these keys.
with_shared_keys(
    #{
        auth_expire_at := AuthExpireAt,
        clientid := ClientId,
        enable_authn := EnableAuthn,
        is_bridge := IsBridge,
        is_superuser := IsSuperuser,
        listener := Listener,
        mountpoint := Mountpoint,
        peerhost := PeerHost,
        peername := Peername,
        protocol := Protocol,
        sockport := SockPort,
        username := Username,
        zone := Zone
    } = ClientInfo
) when map_size(ClientInfo) =:= 13 ->
    #{
        auth_expire_at => AuthExpireAt,
        clientid => ClientId,
        enable_authn => EnableAuthn,
        is_bridge => IsBridge,
        is_superuser => IsSuperuser,
        listener => Listener,
        mountpoint => Mountpoint,
        peerhost => PeerHost,
        peername => Peername,
        protocol => Protocol,
        sockport => SockPort,
        username => Username,
        zone => Zone
    };
with_shared_keys(ClientInfo) ->
    ClientInfo.

%% The error that the client is sent. A refusal that will pass closes the connection without a text;
%% then every client tries again.
-spec close_reason(term()) -> nats_gateway_host:close_reason().
close_reason(quota_exceeded) -> {error, quota_exceeded};
close_reason(server_busy) -> {error, server_busy};
close_reason(server_unavailable) -> {error, server_unavailable};
close_reason(_) -> authorization_violation.

%% The reason that the rule engine gets.
-spec connack(term()) -> atom().
connack(Reason) when is_atom(Reason) -> Reason;
connack(_) -> not_authorized.
