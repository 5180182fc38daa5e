%% The settings of TLS and WebSocket listeners. They are in the standalone gateway's file, or on the
%% plugin's page, which has those that EMQX has no names for.
-module(nats_gateway_listener_config).

-export([tls_schema/0]).
-export([tls_page_schema/1]).
-export([check_tls_page/1]).
-export([tls/3]).
-export([tls_versions/0]).
-export([websocket_schema/0]).
-export([websocket_page_schema/0]).
-export([websocket/1]).

-import(nats_gateway_schema, [invalid/2]).

%% docs/protocol.md section 1: sizes have at most 9 digits.
-define(MAX_SIZE, 999999999).
-define(ORIGINS, <<"must be a list of origins such as \"https://example.com\"">>).
-define(TLS_VERSIONS, ['tlsv1.3', 'tlsv1.2']).

%% -------------------------------------------------------------------------------------------
%% TLS

-spec tls_versions() -> [ssl:protocol_version()].
tls_versions() -> ?TLS_VERSIONS.

%% The settings that make a TLS listener. The names of `ssl_options' are EMQX's.
-spec tls_schema() -> nats_gateway_schema:schema().
tls_schema() ->
    (tls_page_schema(upgrade))#{
        ssl_options =>
            {
                {table, #{
                    certfile => {string, undefined},
                    %% the certificate's file may hold the key
                    keyfile => {string, undefined},
                    password => {string, undefined},
                    cacertfile => {string, undefined},
                    verify => {{one_of, [verify_none, verify_peer]}, verify_none},
                    fail_if_no_peer_cert => {boolean, false},
                    depth => {{integer, 0, 255}, 10},
                    versions => {{some_of, ?TLS_VERSIONS}, ?TLS_VERSIONS},
                    ciphers => {{list, string}, []},
                    handshake_timeout => {{duration, 1}, 2000},
                    hibernate_after => {{duration, 1}, 5000}
                }},
                #{}
            }
    }.

%% Checks the TLS settings of the plugin's page.
-spec check_tls_page(map()) -> ok | {error, Text :: binary()}.
check_tls_page(Settings) ->
    case nats_gateway_schema:valid(fun() -> check_mode(Settings, []) end) of
        {ok, ok} -> ok;
        {error, Text} -> {error, Text}
    end.

-spec tls_page_schema(DefaultMode :: nats_gateway_tls:mode()) -> nats_gateway_schema:schema().
tls_page_schema(DefaultMode) ->
    #{
        tls_mode => {{one_of, [upgrade, handshake_first, auto]}, DefaultMode},
        allow_non_tls => {boolean, false},
        handshake_first_wait => {{duration, 1}, 50},
        peer_cert_as_username =>
            {{one_of, [disabled, cn, dn, san_email, san_dns, san_uri]}, disabled}
    }.

%% Makes the settings of `nats_gateway_tls'. To be called inside of `nats_gateway_schema:valid/1'.
-spec tls(Id :: binary(), Listener :: map(), nats_gateway_schema:path()) -> nats_gateway_tls:settings().
tls(Id, #{ssl_options := Ssl, tls_mode := Mode} = Listener, Path) ->
    #{
        certfile := CertFile,
        keyfile := KeyFile,
        cacertfile := CaFile,
        password := Password,
        verify := Verify,
        fail_if_no_peer_cert := FailIfNone,
        handshake_timeout := HandshakeTimeout
    } = Ssl,
    SslPath = [<<"ssl_options">> | Path],
    CertFile =/= undefined orelse
        invalid([<<"certfile">> | SslPath], <<"is needed: the server's certificate, a PEM file">>),
    Verify =:= verify_none orelse CaFile =/= undefined orelse
        invalid(
            [<<"cacertfile">> | SslPath],
            <<"is needed: who signs the certificates of the clients, a PEM file">>
        ),
    Verify =:= verify_none andalso FailIfNone andalso
        invalid([<<"fail_if_no_peer_cert">> | SslPath], <<"needs verify = \"verify_peer\"">>),
    check_mode(Listener, Path),
    Common = maps:with([allow_non_tls, handshake_first_wait], Listener),
    Files = maps:filter(fun(_, File) -> File =/= undefined end, #{
        certfile => CertFile,
        keyfile =>
            case KeyFile of
                undefined -> CertFile;
                _ -> KeyFile
            end,
        cacertfile => CaFile,
        password =>
            case Password of
                undefined -> undefined;
                _ -> fun() -> Password end
            end
    }),
    maps:merge(maps:merge(Common, Files), #{
        listener => Id,
        key => Id,
        mode => Mode,
        handshake_timeout => HandshakeTimeout,
        verify => Verify,
        options => ssl_options(Ssl, SslPath)
    }).

check_mode(#{tls_mode := handshake_first, allow_non_tls := true}, Path) ->
    invalid([<<"allow_non_tls">> | Path], <<"must be false where tls_mode is handshake_first">>);
check_mode(_, _) ->
    ok.

ssl_options(Ssl = #{versions := Versions, ciphers := Ciphers}, Path) ->
    [{Name, maps:get(Name, Ssl)} || Name <- [verify, fail_if_no_peer_cert, depth, hibernate_after]] ++
        %% The connection itself logs why a handshake failed.
        [
            {log_level, none},
            {versions, Versions}
            | [{ciphers, cipher_suites(Ciphers, Path)} || Ciphers =/= []]
        ] ++
        %% As in nats-server: with a few bytes, a client could make the gateway compute again and
        %% again.
        [{client_renegotiation, false} || lists:member('tlsv1.2', Versions)].

cipher_suites(Names, Path) ->
    lists:map(
        fun(Name) ->
            case nats_gateway_tls:cipher_suite(Name) of
                {ok, Suite} ->
                    Suite;
                error ->
                    invalid([<<"ciphers">> | Path], [Name, <<" is not a cipher suite of TLS">>])
            end
        end,
        Names
    ).

%% -------------------------------------------------------------------------------------------
%% WebSocket

%% The names are EMQX's. Settings that EMQX does not have are named as in nats-server.
-spec websocket_schema() -> nats_gateway_schema:schema().
websocket_schema() ->
    #{
        path => {path, undefined},
        same_origin => {boolean, false},
        allowed_origins => {fun origins/2, []},
        allow_origin_absence => {boolean, true},
        supported_subprotocols => {{list, string}, []},
        compress => {boolean, false},
        max_frame_size => {{limit, ?MAX_SIZE}, infinity},
        handshake_timeout => {{duration, 1}, 5000},
        jwt_cookie => {token, undefined},
        proxy_address_header => {header, undefined},
        proxy_port_header => {header, undefined}
    }.

-spec websocket_page_schema() -> nats_gateway_schema:schema().
websocket_page_schema() ->
    #{
        websocket_same_origin => {boolean, false},
        websocket_jwt_cookie => {token, undefined}
    }.

origins(Values, Path) when is_list(Values) ->
    lists:map(
        fun(Value) ->
            case is_binary(Value) andalso nats_gateway_websocket:origin(Value) of
                {ok, Origin} -> Origin;
                _ -> invalid(Path, ?ORIGINS)
            end
        end,
        Values
    );
origins(_, Path) ->
    invalid(Path, ?ORIGINS).

%% Makes the settings of `nats_gateway_websocket'.
-spec websocket(Listener :: map()) -> nats_gateway_websocket:settings().
websocket(#{websocket := Settings = #{supported_subprotocols := Subprotocols}}) ->
    maps:filter(
        fun(_, Value) -> Value =/= undefined end,
        (maps:remove(supported_subprotocols, Settings))#{
            subprotocols => lists:map(fun string:lowercase/1, Subprotocols)
        }
    ).
